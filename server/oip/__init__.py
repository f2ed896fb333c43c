"""The Open Inference Protocol v2 over REST: a task is a model, a version of it a model version."""
