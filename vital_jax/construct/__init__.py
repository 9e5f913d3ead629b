"""Images and masks to records: readers, questions, the measured teacher, region-of-interest features."""
