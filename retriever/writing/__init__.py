"""What language models write for an experiment: who is asked, what is still to be asked, and the answers as they came."""
