"""The backend llama.cpp: GGUF models through llama-cpp-python."""
