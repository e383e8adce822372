"""The Hugging Face Hub and https addresses: one message a fault, and every file checked against its hash."""
