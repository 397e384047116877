"""etcd v3 as a lease store: flannel's keys and values, written by compare-and-swap."""
