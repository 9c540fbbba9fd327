"""What everything else is made of: types, errors, tensors, options, runs, metrics."""
