"""What surrounds the loop of train.py: opening a run, plan, preparation, programs, several runs and their report."""
