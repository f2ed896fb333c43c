"""Fast ops of the mixed-task forward, a folder each: the public op, its plain reference, its Triton kernel.

Every op is a torch custom op (`torch.ops.ssfserve.*`) with a fake function, so `torch.compile` and CUDA
graphs take it whole. On a CPU the reference runs, on a CUDA device the kernel; no other place chooses.
"""
