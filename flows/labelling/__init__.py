"""The page on which people label a queue: `posttrain label`."""
