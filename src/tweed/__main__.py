from tweed.cli import main

main()
