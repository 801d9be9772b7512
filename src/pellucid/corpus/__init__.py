"""Any number of texts in order, run batch by batch; a sink says what is done with each batch."""
