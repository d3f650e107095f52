"""How a variant's layers compute: in integer arithmetic, on the kernels of the device."""
