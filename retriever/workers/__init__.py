"""Who does the work: this process, several that train along, or models on a Ray cluster."""
