"""What both daemons do alike: settings, their small HTTP face, their own logs. Needs the extra `[daemon]`."""
