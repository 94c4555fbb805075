"""What runs on the host: carries one job from its specification to its result.

Python 3.9 to 3.13, the standard library and the distribution's Docker SDK; imports nothing of the rest of the
package but `core`.
"""
