"""The sub-commands of `vital`, one file a group: thin command-line front ends of the packages that do the work."""
