"""The sub-commands of `vital`, one file a group; each is a thin door into a room."""
