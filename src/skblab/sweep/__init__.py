"""Every fault of a conversation: one run of a scenario for each packet and each verdict, and the table of outcomes."""
