class UserError(Exception):
    """x"""
