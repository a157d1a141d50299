"""What the README shows of public recordings, and how to make it again."""
