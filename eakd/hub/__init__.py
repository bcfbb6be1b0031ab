"""Finished students as folders that anybody opens, on the disk or on the hub."""
