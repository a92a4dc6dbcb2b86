"""Parallel work whose results come in order."""

import collections
from concurrent import futures


def ordered_map(function, items, threads):
    """Calls a function on many items in parallel and yields the results in order, holding only a few at a time.

    Args:
      function: called with one item.
      items: iterable.
      threads: number of threads.

    Yields:
      The results, in the order of `items`. An exception in a call is raised when its turn comes.
    """
    pending = collections.deque()
    pool = futures.ThreadPoolExecutor(threads)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
