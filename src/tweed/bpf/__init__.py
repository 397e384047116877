"""Programs for the kernel: C sources beside the objects that `script/bpf` builds of them. The C is under GPL-2.0, as its helpers ask for."""
