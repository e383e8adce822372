"""The Hugging Face Hub over the network: one deadline, one message a fault, every large file checked."""
