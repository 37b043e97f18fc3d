"""Kinds of runs, one file each: what the window's worker and the terminal both start.

A file ``NAME.py`` here is the kind ``NAME`` of a run and, unless it says otherwise, the
command ``homolog NAME``; nothing else needs to know of it. Its parts:

- its docstring: one line, shown by ``homolog --help``;
- ``Config``: a frozen dataclass of ``homolog.config.option`` fields, which are flags,
  arguments, defaults and checks at once; its docstring is the help of the command;
- ``job(config, folder)``: does the work, yields events, returns JSON types; a result
  with a true ``stopped`` was stopped;
- ``lines(result)``, if wanted: what people read when it has ended;
- ``COMMAND``, if wanted: another name for the command, in one or two words; empty for
  none;
- ``FAILURES``, if wanted: a key of the result; the command ends with status 1 where
  something is listed there;
- ``REPORTED``, if wanted: the keys of the result that ``--json`` prints;
- ``STOPPED``, if wanted: what is said after Ctrl-C;
- ``home(config)``, if wanted: the folder the terminal gives the job.

Nothing heavy may be imported at the top of such a file: the list of commands imports
them all.
"""
