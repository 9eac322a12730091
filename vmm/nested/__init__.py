"""The nested lanes: a command run on a real NPT or EPT, in an emulator, on a machine that need not
have either.

`npt` is QEMU's TCG with SVM, `ept` is Bochs with VMX; in both a Debian kernel has a working
`/dev/kvm`. The way of a run: `run` → `stages` (kernel, initramfs and root, built once into
`cache`) → `payload` (the project and the command) → `emulator` and `console` (boot it, pass its
output on, find the exit status).
"""
