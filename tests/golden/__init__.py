"""What an earlier version wrote, kept as it was: nothing that others read of an output may change unseen."""
