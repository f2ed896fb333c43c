"""What runs mixed-task batches over one frozen backbone: one small interface, several executors.

    torch      the reference: plain PyTorch, every family and device
    cuda       GPU: Triton kernels, CUDA graphs, two batches under way
    openvino   CPU: the same site-replaced model as an OpenVINO graph, converted once and cached

Site list, fold and bank are shared; all pass the same tests.
"""
