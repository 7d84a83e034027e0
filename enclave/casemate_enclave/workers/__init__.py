"""Models run in processes of their own, so that what ends one ends nothing else (SPEC 8.10).

Three kinds of process, all of the measured tree and forked, never executed:

- the *enclave*: keys, sessions, the host's connections. It has no machine code of onnxruntime;
- the *spawner*, forked from it before it opens anything: it imports onnxruntime once, is confined,
  and forks workers when it is told to;
- a *worker* for each model: it has the model's contents, and connections to the enclave over which
  tensors come and go. It can reach nothing else, and what it says is read as a stranger's word.

``spawning``, ``process`` and ``model`` are the enclave's side; ``spawner`` and ``worker`` the
other. Both read and write ``packets``, ``tensors`` and ``shared``.
"""
