"""`tweed bench`: what each way of carrying the overlay costs, measured here and now in labs of its own.

grounds     the two ends of each way, as namespaces and addresses       programs    iperf3 and sockperf, run and read
dataplane   rounds of all ways, one after the other                     report      medians, ratios and bars; pure
crossings   who enters the kernel how often for one packet
"""
