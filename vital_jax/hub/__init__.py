"""Hugging Face folders to our parameter trees and back, by one name table."""
