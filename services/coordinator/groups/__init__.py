"""One group on its path: admitted, generated, graded, judged, put into a batch."""
