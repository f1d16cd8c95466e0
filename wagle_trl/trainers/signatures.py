"""The signature of a class whose constructor passes its arguments on, for notebooks and `help`."""

import inspect


def joint_signature(cls: type, mixin: type) -> inspect.Signature:
    """
    The arguments of the constructor of `cls`; where it takes any, those of the base after `mixin` come first.

    Args:
        cls (`type`): Class with `mixin` among its bases.
        mixin (`type`): Class whose constructor takes any arguments and hands them to the next base.
    """
    own = list(inspect.signature(cls.__init__).parameters.values())
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in own):
        after = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
        base = next(base for base in after if "__init__" in vars(base) and base is not object)
        of_base = inspect.signature(base.__init__).parameters.values()
        keywords = [parameter for parameter in own if parameter.kind is parameter.KEYWORD_ONLY]
        own = [*(parameter for parameter in of_base if parameter.kind is not parameter.VAR_KEYWORD), *keywords]
    return inspect.Signature(own[1:])
