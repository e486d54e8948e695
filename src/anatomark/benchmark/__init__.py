"""The benchmark: data sets x methods x seeds, each cell trained and measured alike, and what follows from all."""
