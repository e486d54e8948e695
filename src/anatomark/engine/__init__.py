"""Work that is many pieces which know nothing of each other, done by processes of this machine or of a Ray cluster."""
