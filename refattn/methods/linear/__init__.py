"""Linear attention: Katharopoulos et al. 2020, and the feature maps of those who followed."""
