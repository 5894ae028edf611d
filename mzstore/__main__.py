from mzstore.cli import main

main()
