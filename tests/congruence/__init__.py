"""What must be equal to something simpler, under any order of operations."""
