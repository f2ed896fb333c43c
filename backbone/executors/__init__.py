"""What runs mixed-task batches over one frozen backbone: one small interface, several executors.

    torch      the reference: plain PyTorch, every family and device
    openvino   CPU: the same site-replaced model as an OpenVINO graph, converted once and cached

Site list, fold and bank are shared; all pass the same tests.
"""
