"""Rules about the code itself: who imports whom, what a room consists of, how long things may be."""
