"""Registration of every hook that debug has on modules, optimizers and tensors.

``calls`` tells subscribers of a model's calls, ``optimizers`` of an optimizer's updates.  ``forward`` and ``tensors``
register single hooks.  ``guards`` says when a hook has to ignore a forward pass.
"""
