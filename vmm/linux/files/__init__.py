"""The files of one Linux program: what was offered to it, and what it writes, in memory.

    system          FileSystem: what the process layer asks
    walk, names     paths looked up; what changes them
    attributes      what is told of a path, and changed of what it names
    tree, nodes     what there is, and how it is changed
    data, contents  what is in a file
    lower, beneath  a directory of the host's shown below everything
    open_files, open_directory, devices, pipes, streams, descriptors
                    what is open
    special         /dev and /proc
    changes         the undo log of all of it
    written         what the program wrote, for Python

Nothing on the host is written, and nothing is read that was not offered. What is refused raises
`SysError`. What else is raised in the midst of a call (Ctrl-C) is undone with `changes.undo()`.
"""
