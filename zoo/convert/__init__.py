"""Official checkpoints -> our keys. Converters are pure: tensors in, tensors out, no file and no module touched."""
