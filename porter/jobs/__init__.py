"""One module a public function, named as its command."""
