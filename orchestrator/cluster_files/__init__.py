"""Files that describe clusters: read strictly, checked against the project and each other."""
