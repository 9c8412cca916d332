"""From a folder of photos and sketches to a generator that draws."""
