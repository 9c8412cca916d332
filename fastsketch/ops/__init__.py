"""The operators as `torch.library` custom ops: schema, fake, autograd, autocast and dispatch, one file each."""
