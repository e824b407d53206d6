"""What a layer costs on a device: precisions, op shapes, kernels, microbenchmarks, latency tables.

This package is the floor of the house. It knows no model, layer or study, and the words it lends to
everyone (`precision`, `recipe`, `op_shape`, `operating_point`, `device_identity`, `hardware_profile`,
`latency_table`) import neither torch nor numpy.
"""
