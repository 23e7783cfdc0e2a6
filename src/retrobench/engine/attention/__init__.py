"""Attention: exact, over part of the context, and the templates of methods.

What a method may import of the engine is here.
"""
