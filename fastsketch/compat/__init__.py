"""Drop-in replacements for the parts of other projects that fastsketch computes faster."""
