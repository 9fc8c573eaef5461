"""Models, schedules, the data order, the DeepSpeed engine and the loop that trains one run."""
