"""Global-to-local localisation by regression and classification (Noothout et al., IEEE TMI 2020)."""
