"""Pure decisions: values in, values out. No sockets, no clock, no chance."""
