"""A sweep's results, from its trials' folders to the pages that people read. No Ray."""
