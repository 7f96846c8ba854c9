"""The steps of an experiment, a file each; `step` keeps what each made, and makes none twice."""
